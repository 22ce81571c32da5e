"""Where the images of a gallery come from: files, folders, tables and remote stores."""
