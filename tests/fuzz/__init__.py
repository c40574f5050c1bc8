"""One thing broken in valid files and folders, by hypothesis."""
