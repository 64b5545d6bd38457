"""The demo model in the making: its world, its texts and its training. It is not shipped."""
