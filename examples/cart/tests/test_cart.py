import unittest

from shop.cart import Cart


class CartTest(unittest.TestCase):
    def test_an_empty_cart_costs_nothing(self):
        self.assertEqual(Cart().total(), 0)

    def test_the_same_item_again_adds_to_its_quantity(self):
        cart = Cart()
        cart.add("pen", 120, 2)
        cart.add("pen", 120)
        self.assertEqual(cart.total(), 360)

    def test_removed_items_cost_nothing(self):
        cart = Cart()
        cart.add("pen", 120)
        cart.add("book", 1500)
        cart.remove("pen")
        self.assertEqual(cart.total(), 1500)

    def test_a_voucher_counts_for_the_whole_cart(self):
        cart = Cart()
        cart.add("pen", 120, 12)
        cart.add("book", 1500)
        cart.apply_voucher(10)
        self.assertEqual(cart.total(), 2581)

    def test_odd_vouchers_are_refused(self):
        with self.assertRaises(ValueError):
            Cart().apply_voucher(101)


if __name__ == "__main__":
    unittest.main()
