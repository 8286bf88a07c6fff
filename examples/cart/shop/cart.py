"""A cart of items and the voucher that may go with it."""

from shop.pricing import line_total, percent_of


class Cart:
    """Items by name, each with its price and quantity."""

    def __init__(self):
        self._lines = {}
        self._voucher_percent = 0

    def add(self, name, unit_cents, quantity=1):
        """Put pieces of an item into the cart; the same item again adds to its quantity."""
        if unit_cents < 0:
            raise ValueError("price must not be negative")
        _, already = self._lines.get(name, (unit_cents, 0))
        self._lines[name] = (unit_cents, already + quantity)

    def remove(self, name):
        """Take an item out of the cart, however many pieces there are."""
        del self._lines[name]

    def apply_voucher(self, percent):
        """Make the whole cart so many percent cheaper; a second voucher replaces the first."""
        if not 0 <= percent <= 100:
            raise ValueError("a voucher is between 0 and 100 percent")
        self._voucher_percent = percent

    def total(self):
        """Return the price of everything, in cents."""
        subtotal = sum(line_total(unit, quantity) for unit, quantity in self._lines.values())
        return subtotal - percent_of(subtotal, self._voucher_percent)
