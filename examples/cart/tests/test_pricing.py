import unittest

from shop.pricing import line_total, percent_of


class PercentTest(unittest.TestCase):
    def test_half_a_cent_is_rounded_up(self):
        self.assertEqual(percent_of(50, 5), 3)
        self.assertEqual(percent_of(49, 5), 2)


class LineTotalTest(unittest.TestCase):
    def test_few_pieces_cost_their_price(self):
        self.assertEqual(line_total(250, 9), 2250)

    def test_ten_pieces_get_the_bulk_discount(self):
        self.assertEqual(line_total(250, 10), 2375)

    def test_many_pieces_get_the_bulk_discount(self):
        self.assertEqual(line_total(250, 20), 4750)

    def test_no_piece_is_refused(self):
        with self.assertRaises(ValueError):
            line_total(250, 0)


if __name__ == "__main__":
    unittest.main()
