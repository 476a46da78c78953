"""``kinray methods``: what can be merged how, from the methods' declarations."""
