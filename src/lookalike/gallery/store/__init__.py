"""Where a gallery keeps its rows: `base` says what a store is, `sqlite` is the one in a folder, `postgres` a server."""
