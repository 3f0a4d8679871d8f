// Nothing does nothing: running it costs what starting a program costs.
package main

func main() {}
