def test_a(bundle): pass
def test_b(other_bundle): pass
