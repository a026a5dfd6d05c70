"""Our mechanisms beside independent implementations: `pip install "subquad[parity]"`."""
