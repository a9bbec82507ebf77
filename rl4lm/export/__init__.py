"""A trained model for others: its lineage, its card, its folder, its upload."""
