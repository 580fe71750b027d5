//go:build linux

// Zfsvm makes and runs a virtual machine with OpenZFS: see package
// testenv/zfsvm. Scripts/zfsvm.sh runs it, after installing what it needs.
//
//	zfsvm build            make the image, unless it is there
//	zfsvm test [package…]  run the tests with the build tag zfs; prints what go test -json would
//	zfsvm shell            a shell beside a pool, an S3 server and secrate
//	zfsvm run PROGRAM …    run a program of the image in an empty machine
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/secrate/secrate/testenv/zfsvm"
)

func main() {
	fs := flag.NewFlagSet("zfsvm", flag.ExitOnError)
	version := fs.String("zfs", string(zfsvm.Default), "`version` of OpenZFS: 2.3 or 2.1")
	run := fs.String("run", "", "of test: run only tests whose names match this `regexp`")
	timeout := fs.Duration("timeout", 15*time.Minute, "of test: time limit of the tests of each package")
	var args []string
	fs.Func("arg", "of test: `argument` for the tests, such as -seed=5; more than once for more", func(s string) error {
		args = append(args, s)
		return nil
	})
	files := map[string]string{}
	fs.Func("file", "of run: put `file:path`, a file of this machine, at a path in the guest; more than once for more", func(s string) error {
		from, to, ok := strings.Cut(s, ":")
		if !ok {
			return errors.New("want FILE:PATH")
		}
		files[to] = from
		return nil
	})
	memory := fs.Int64("memory", 2048, "`MiB` of memory of the guest")
	disk := fs.Int64("disk", 4096, "`MiB` of the scratch disk")
	verbose := fs.Bool("v", false, "show the guest's console")
	fs.Usage = func() {
		fmt.Fprintln(fs.Output(), "usage: zfsvm [flags] build | test [package…] | shell | run PROGRAM [argument…]")
		fs.PrintDefaults()
	}
	fs.Parse(os.Args[1:])
	if fs.NArg() == 0 {
		fs.Usage()
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	img, err := zfsvm.Build(ctx, zfsvm.Version(*version), os.Stderr)
	if err == nil {
		o := zfsvm.Options{Image: img, Memory: *memory << 20, Disk: *disk << 20}
		if *verbose {
			o.Console = os.Stderr
		}
		switch rest := fs.Args()[1:]; fs.Arg(0) {
		case "build":
			fmt.Printf("%s\n%s\n", img.Kernel, img.Initrd)
		case "test":
			err = test(ctx, o, *run, *timeout, args, rest)
		case "shell":
			err = shell(ctx, o)
		case "run":
			o.Files = files
			err = runOne(ctx, o, rest)
		default:
			fs.Usage()
			os.Exit(2)
		}
	}
	exit := (*zfsvm.ExitError)(nil)
	if errors.As(err, &exit) {
		os.Exit(exit.Status)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "zfsvm: error:", err)
		os.Exit(1)
	}
}

func runOne(ctx context.Context, o zfsvm.Options, args []string) error {
	vm, err := zfsvm.Start(ctx, o)
	if err != nil {
		return err
	}
	defer vm.Close()
	return vm.Run(ctx, zfsvm.Command{Args: args, Stdout: os.Stdout, Stderr: os.Stderr})
}
