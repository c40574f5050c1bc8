"""A spec and a base recipe become a recipe in which every value is resolved."""
