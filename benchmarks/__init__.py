"""Side-by-side timings; every one first checks that both sides compute the same."""
