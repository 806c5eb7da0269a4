"""Fitting models to cells: pretraining, fine-tuning, BioFormers, perturbations, and what each must beat."""
