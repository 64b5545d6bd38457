import LZWKit

public typealias ModelBundle = LZWKit.Bundle
