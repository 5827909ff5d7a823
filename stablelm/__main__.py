"""`python -m stablelm` is the `stablelm` command."""

from stablelm.cli.main import main

if __name__ == "__main__":
    main()
