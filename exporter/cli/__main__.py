"""The command line as `python -m exporter.cli`, where the console script is not on the path."""

from exporter.cli.app import main

main()
