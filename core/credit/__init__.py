"""Goodwill credit: a supplier's gift, approved by two people, issued as a vend."""
