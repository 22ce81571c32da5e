"""Sources of images: files, folders, patterns, tables, data sets and remote stores."""
