# The checks of the apps, as far as this machine can run them: tools/mobile_check.sh says what they are.
mobile-check:
	@tools/mobile_check.sh

.PHONY: mobile-check
