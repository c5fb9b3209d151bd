"""Roles of tokens, and the information that they carry."""
