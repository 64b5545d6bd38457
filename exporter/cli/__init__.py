"""The command line: `app` registers the commands, each of which makes one library call."""
