"""What the tests of a user of sagaz-es need."""
