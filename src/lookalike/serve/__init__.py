"""The service: classify images and search a gallery over HTTP, with a web page."""
