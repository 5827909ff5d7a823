"""The command line: one thin function per verb; the work is in the rooms."""
