//go:build !linux

package main

import "math"

func clock() (string, error) { return "not looked at on this system", nil }

func freeBytes(string) (int64, error) { return math.MaxInt64 / 2, nil }
