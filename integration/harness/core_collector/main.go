// Command otelcol is the OpenTelemetry Collector with the core components of Debian's library, for tests.
//
// `tail_sampling`, `filter` and other contrib components are not in that library. The one that is here under a contrib
// name is a stand-in, as its comment says.
package main

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"log"
	"os"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/confmap/provider/envprovider"
	"go.opentelemetry.io/collector/confmap/provider/fileprovider"
	"go.opentelemetry.io/collector/connector"
	"go.opentelemetry.io/collector/connector/forwardconnector"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/exporter/nopexporter"
	"go.opentelemetry.io/collector/exporter/otlpexporter"
	"go.opentelemetry.io/collector/exporter/otlphttpexporter"
	"go.opentelemetry.io/collector/extension"
	"go.opentelemetry.io/collector/extension/extensionauth"
	"go.opentelemetry.io/collector/otelcol"
	"go.opentelemetry.io/collector/processor"
	"go.opentelemetry.io/collector/processor/batchprocessor"
	"go.opentelemetry.io/collector/processor/memorylimiterprocessor"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/service/telemetry/otelconftelemetry"
)

// tokenConfig has the one field of contrib's `bearertokenauth` that our files use.
type tokenConfig struct {
	Filename string `mapstructure:"filename"`
}

// tokenAuth is a stand-in for contrib's `bearertokenauth`: it compares the header `authorization` with "Bearer TOKEN".
type tokenAuth struct {
	component.ShutdownFunc
	file     string
	expected []byte
}

var _ extensionauth.Server = (*tokenAuth)(nil)

// Start reads the token, once: contrib's reads it again when the file changes.
func (auth *tokenAuth) Start(context.Context, component.Host) error {
	token, err := os.ReadFile(auth.file)
	auth.expected = append([]byte("Bearer "), bytes.TrimSpace(token)...)
	return err
}

// Authenticate refuses a request without the token. gRPC's metadata is in lower case, HTTP's headers are not.
func (auth *tokenAuth) Authenticate(ctx context.Context, sources map[string][]string) (context.Context, error) {
	for _, key := range []string{"authorization", "Authorization"} {
		for _, value := range sources[key] {
			if subtle.ConstantTimeCompare([]byte(value), auth.expected) == 1 {
				return ctx, nil
			}
		}
	}
	return ctx, errors.New("missing or wrong bearer token")
}

func tokenFactory() extension.Factory {
	return extension.NewFactory(
		component.MustNewType("bearertokenauth"),
		func() component.Config { return &tokenConfig{} },
		func(_ context.Context, _ extension.Settings, config component.Config) (extension.Extension, error) {
			return &tokenAuth{file: config.(*tokenConfig).Filename}, nil
		},
		component.StabilityLevelDevelopment,
	)
}

func factories() (made otelcol.Factories, err error) {
	made.Receivers, err = otelcol.MakeFactoryMap[receiver.Factory](otlpreceiver.NewFactory())
	if err != nil {
		return made, err
	}
	made.Processors, err = otelcol.MakeFactoryMap[processor.Factory](batchprocessor.NewFactory(), memorylimiterprocessor.NewFactory())
	if err != nil {
		return made, err
	}
	made.Connectors, err = otelcol.MakeFactoryMap[connector.Factory](forwardconnector.NewFactory())
	if err != nil {
		return made, err
	}
	made.Exporters, err = otelcol.MakeFactoryMap[exporter.Factory](nopexporter.NewFactory(), otlpexporter.NewFactory(), otlphttpexporter.NewFactory())
	if err != nil {
		return made, err
	}
	made.Extensions, err = otelcol.MakeFactoryMap[extension.Factory](tokenFactory())
	made.Telemetry = otelconftelemetry.NewFactory()
	return made, err
}

func main() {
	settings := otelcol.CollectorSettings{
		BuildInfo: component.BuildInfo{Command: "otelcol", Description: "core components of Debian's library"},
		Factories: factories,
		ConfigProviderSettings: otelcol.ConfigProviderSettings{ResolverSettings: confmap.ResolverSettings{
			ProviderFactories: []confmap.ProviderFactory{envprovider.NewFactory(), fileprovider.NewFactory()},
		}},
	}
	if err := otelcol.NewCommand(settings).Execute(); err != nil {
		log.Fatal(err)
	}
}
