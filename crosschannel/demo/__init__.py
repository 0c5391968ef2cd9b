"""Demo page that colours pictures in a browser, with a prediction server or as static files."""
