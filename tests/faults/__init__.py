"""Faults on purpose: a world small enough to be broken thousands of times, a shim that counts and
fails file operations, drivers that kill, mutators of files. Tests use the quick half, `make soak`
(`faults.soak`) all of it.
"""
