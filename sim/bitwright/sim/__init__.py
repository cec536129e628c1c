"""The simulator: golden model, cycle model, RTL back ends, energy."""
