"""Recipes for images: a trained model judged beside the real data, in numbers and pictures."""
