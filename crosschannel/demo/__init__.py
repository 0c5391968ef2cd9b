"""Demo page that colours a visitor's pictures, with predictions from a server or, as static files, in the browser."""
