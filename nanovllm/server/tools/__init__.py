"""Tool calls in a model's text: their forms, found while the text comes, and forced by a grammar."""
