"""Models made smaller: parts cut out, or weights set to zero."""
