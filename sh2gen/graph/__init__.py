"""An operator as nodes in SSA form, its derivative and its meaning."""
