"""CT studies: from the files of hospitals and challenges to volumes in Hounsfield units."""
