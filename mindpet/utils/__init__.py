"""Names that everybody may import."""
