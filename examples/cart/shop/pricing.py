"""Prices are whole cents. Percentages are whole numbers; half a cent is rounded up."""

BULK_QUANTITY = 10
BULK_PERCENT = 5


def percent_of(cents, percent):
    """Return so many percent of an amount, rounded half up."""
    return (cents * percent + 50) // 100


def line_total(unit_cents, quantity):
    """Return the price of one line of a cart.

    From BULK_QUANTITY pieces on, the line is BULK_PERCENT cheaper.
    """
    if quantity < 1:
        raise ValueError("quantity must be at least 1")
    total = unit_cents * quantity
    if quantity > BULK_QUANTITY:
        total -= percent_of(total, BULK_PERCENT)
    return total
