"""Every method on every family of the zoo: settings, one cell, the page that is made of all."""
