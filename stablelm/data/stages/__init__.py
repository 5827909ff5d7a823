"""The steps from raw files to token files, each a stage of `execution`."""
