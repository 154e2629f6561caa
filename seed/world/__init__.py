"""The embedded small world: instructions whose truth a program knows. Knows no step of the loop."""
