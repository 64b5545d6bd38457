"""The TQLZ codec: FORMAT.md, its encoder, and two decoders, one to read (`reference`) and one to
use (`native`)."""
