"""A client of utrn.v1 with the defaults that keep a till selling while nodes come and go."""
