"""Side-by-side timings; each benchmark first checks that both sides compute the same results."""
