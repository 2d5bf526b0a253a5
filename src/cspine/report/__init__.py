"""Results as pages, tables, figures, cards and checklists."""
