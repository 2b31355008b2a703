"""One module or package per provider, each with its vendor's errors mapped at its door."""
