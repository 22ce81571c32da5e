"""The service: what a picture is and what looks like it, over HTTP, and the page that asks."""
