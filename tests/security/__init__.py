"""Attacks, by attacker: what each may do by docs/SECURITY.md, and that they can do no more."""
