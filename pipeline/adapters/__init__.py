"""Retraining: small trained parts on a frozen model, and the gate that they pass before anybody sees them."""
