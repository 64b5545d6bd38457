"""What an app team adds to its project to run a bundle: sources, snippets and settings."""
