// Reads a container file and compose files with the libraries that Docker itself reads them with, and says what is wrong.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

func main() {
	if len(os.Args) != 3 {
		fail("usage: deploy CONTAINERFILE COMPOSE")
	}
	container(os.Args[1])
	compose(os.Args[2])
}

func fail(format string, values ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", values...)
	os.Exit(1)
}

// Each stage with its last user and its entry point, one a line.
func container(path string) {
	file, err := os.Open(path)
	if err != nil {
		fail("%s: %v", path, err)
	}
	parsed, err := parser.Parse(file)
	if err != nil {
		fail("%s: %v", path, err)
	}
	for _, warning := range parsed.Warnings {
		fail("%s: %s", path, warning.Short)
	}
	lint := linter.New(&linter.Config{Warn: func(rule, description, url, message string, _ []parser.Range) {
		fail("%s: %s: %s", path, rule, message)
	}})
	stages, _, err := instructions.Parse(parsed.AST, lint)
	if err != nil {
		fail("%s: %v", path, err)
	}
	for _, stage := range stages {
		user, entry := "root", ""
		for _, command := range stage.Commands {
			switch command := command.(type) {
			case *instructions.UserCommand:
				user = command.User
			case *instructions.EntrypointCommand:
				entry = strings.Join(command.CmdLine, " ")
			}
		}
		fmt.Printf("stage %s from %s user %s entrypoint %s\n", stage.Name, stage.BaseName, user, entry)
	}
}

// Each container with what makes it safe, one a line.
func compose(path string) {
	options, err := cli.NewProjectOptions([]string{path}, cli.WithName("millrace"))
	if err != nil {
		fail("%s: %v", path, err)
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		fail("%s: %v", path, err)
	}
	for _, name := range project.ServiceNames() {
		one := project.Services[name]
		fmt.Printf("container %s read-only %t capabilities -%s\n", name, one.ReadOnly, strings.Join(one.CapDrop, ","))
	}
}
