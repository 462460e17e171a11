"""Keys and token algorithms, behind the TokenSigner port."""
