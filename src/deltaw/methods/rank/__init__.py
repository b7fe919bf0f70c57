"""Who gets which rank: the pure parts (scores, budgets, allocators), which touch no adapter."""
